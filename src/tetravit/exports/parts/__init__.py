"""Parts of exports: certificates, the images to compare on, scores, and files in the place of models."""
