"""An image classifier: scikit-learn's 8x8 digits, with labels."""
