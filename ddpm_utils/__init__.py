"""The module that the notebooks share: one file per chapter, each importing only files above it.

guards -> embedding -> diffusion -> unet -> data -> hardware -> checkpoint -> diffusers_format -> sampling -> muon
-> training -> evaluation -> plots -> widgets -> checks.
"""
