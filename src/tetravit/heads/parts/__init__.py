"""Components of heads: feature pyramid, region proposals, RoI branches."""
