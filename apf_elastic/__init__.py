"""apf-elastic: keeps exactly as many pilots, glideins and virtual machines alive as the waiting work needs.

The package is light to import: nothing below is loaded until it is used.
"""

__version__ = "0.1.0"
