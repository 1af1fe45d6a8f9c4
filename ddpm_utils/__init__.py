"""The module that the notebooks share: one file per chapter, each importing only files above it.

embedding -> diffusion -> unet -> data -> checkpoint -> sampling -> training -> plots -> widgets -> checks.
"""
