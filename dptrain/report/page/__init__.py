"""The report of a run: one HTML page that needs no other file and no network.

history.py   the lines of metrics.jsonl
facts.py     everything that a page shows about a run, as plain values
pictures.py  samples and filters as PNG
markup.py    escaped HTML, and the templates: the *.html, *.css and *.js files beside it
charts.py    curves as SVG
run.py       the page of one run
compare.py   the page that compares several runs
"""
