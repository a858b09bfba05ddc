"""What report.py is made of: it reads run folders and imports no training code."""
