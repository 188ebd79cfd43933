"""Metrics of classification, regression, segmentation and text tasks, and calibration."""
