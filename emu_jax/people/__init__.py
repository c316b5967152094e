"""The web application in which people compare images, and choose and caption those of a data set.

It needs the extra ``people`` and is imported by its commands only, never by training.
"""
