"""Programs that use the library. A package with this file: without it an installed one called `examples` (opacus has
one) would be imported in its place.
"""
