"""Ready-to-paste settings."""

PAGES = ()
