"""All pages and extras of the explorer, in one table."""

from __future__ import annotations

from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.pages import blobs, home, live, session, search

PAGES: tuple[Page, ...] = (*home.PAGES, *live.PAGES, *search.PAGES)
EXTRAS: tuple[Extra, ...] = (*home.EXTRAS, *live.EXTRAS, *session.EXTRAS, *blobs.EXTRAS)
