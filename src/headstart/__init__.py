"""A head start on your own task from four pretrained model families: BiT, CvT, BEiT and YOSO."""
__version__ = "0.1.0"
