"""How text is found: files into passages, passages into chunks, chunks into an index, an index into ranked results."""
