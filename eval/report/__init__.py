"""`fgq report`: what a conversion did to a model, as one HTML document that says why.

``study.py`` gathers what is to be said (`Findings`), ``page.py`` writes it as HTML and ``plots.py`` as
images; the others measure or draw one thing each.
"""
