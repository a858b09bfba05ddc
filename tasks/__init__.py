"""One file per kind of data: read, repair, split, tokenise, collate, score."""
