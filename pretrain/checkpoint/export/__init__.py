"""A trained encoder for other libraries, with a model card; each format has a file here."""
