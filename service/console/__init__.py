"""/console: pages for people who watch, decide and review; the same parts as /admin, behind a login.

session   login, cookie, CSRF, roles
live      the last minutes, from the metrics
charts    numbers -> points of inline SVG
pages     what is shown
acts      what is done: activate, roll back, retrain, review, erase
app       wires them, with the headers that every page bears
"""
