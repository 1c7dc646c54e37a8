"""One module per page: what may be asked for, the view made of the record, and what else hangs on it."""
