"""The parts of an experiment's HTML page: its answer in plain words, its forests and plots, its
template. `services.experiments.report.html.page` puts them together.
"""
