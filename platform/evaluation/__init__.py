"""Prediction over whole volumes, scores, and the page that shows them."""
