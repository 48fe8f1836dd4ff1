"""Self-contained HTML pages: the parts that every report is made of."""
