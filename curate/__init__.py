"""curate: score, filter, recaption, translate, rate and mix image-text pairs for text-to-image training."""
