"""Pages over a store: `curate serve STORE`.

    app.py       the application: routes, security headers, error pages, the server
    reader.py    read-only SQL, a cursor for each request, on the newest index
    gallery.py   rows by outcome, score and SQL condition
    whatif.py    another policy over the same scores, without storing it
    pictures.py  thumbnails, made once and kept
    templates/   server-rendered pages (Jinja2)      static/   one style sheet, one script

Everything is readable without JavaScript; the script adds keys. Pages come with a content security policy that allows
no inline script or style, so a template uses neither.
"""

from curate.web.app import make_app, serve

__all__ = ["make_app", "serve"]
