"""Pages, pictures and tables of what was found, for people: made from records and from nothing else. torch-free."""
