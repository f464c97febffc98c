"""What tables show: columns, rows, rankings of any length, filters and exports. No Textual in it."""
