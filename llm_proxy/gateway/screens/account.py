"""My account."""

PAGES = ()
