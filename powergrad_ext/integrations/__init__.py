"""The loss as other frameworks call it: a module each, which imports its framework.

Nothing here is imported with the package.
"""
