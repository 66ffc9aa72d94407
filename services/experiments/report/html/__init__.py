"""The parts of an experiment's HTML page: its answer in plain words, its plots, its template.

`services.experiments.report.html.page` puts them together.
"""
