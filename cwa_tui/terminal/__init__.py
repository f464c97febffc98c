"""What a terminal can do: colours, keys, the clipboard, messages."""
