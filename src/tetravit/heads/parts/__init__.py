"""What several heads are built of: the feature pyramid, region proposals, the branches that read regions."""
