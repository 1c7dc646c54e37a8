"""Names things: exchanges, endings, masking. Pure."""
