"""A sweep's results for people: on the terminal, as Markdown, CSV, SVG, and one HTML page."""
