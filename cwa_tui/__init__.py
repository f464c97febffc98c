"""What a person sees of cwtool on a terminal: the command line (`cli`) and the full-screen interface."""
