"""What makes and describes the sample images: real ones, from what scikit-image carries in its package."""
