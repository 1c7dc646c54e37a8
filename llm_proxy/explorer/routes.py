"""All pages and extras of the explorer, in one table."""

from __future__ import annotations

from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.pages import blobs, call, figures, home, live, search, session

PAGES: tuple[Page, ...] = (*home.PAGES, *call.PAGES, *live.PAGES, *search.PAGES, *session.PAGES, *figures.PAGES)
EXTRAS: tuple[Extra, ...] = (*home.EXTRAS, *call.EXTRAS, *live.EXTRAS, *session.EXTRAS, *blobs.EXTRAS, *figures.EXTRAS)
