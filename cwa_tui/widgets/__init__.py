"""One module a widget, named after what is on screen."""
