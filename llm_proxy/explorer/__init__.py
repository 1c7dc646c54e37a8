"""Shows the record in a browser: pages, their data as JSON, and what happens now. Reads only."""
