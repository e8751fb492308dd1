"""The report of a run: one HTML page that needs no other file and no network.

history, facts          metrics.jsonl, and everything that a page shows about a run, as plain values
pictures, figures       samples and filters as PNG; figures as text
reproduce               the command that makes a run again
markup, frame           escaped HTML and templates (*.html, *.css, *.js); the frame of every page
charts                  curves as SVG
run                     the page of one run, with the sections classes, gallery, speed and provenance
compare                 the page that compares several runs
write                   writes a page as one file
"""
