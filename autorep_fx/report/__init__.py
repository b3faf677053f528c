"""Reports of a compiled model: tables, figures and a one-file HTML page."""
