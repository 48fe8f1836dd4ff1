"""Self-contained HTML pages: the parts that every report is made of.

`format` writes numbers, for terminal tables too; `charts` draws inline SVG; `page` holds the shell and the parts. They
are imported by their own names, so that a terminal table never loads the template engine.
"""
