"""One module per configuration format: read or change one value, leave every other byte."""
