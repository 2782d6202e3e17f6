"""Parts of the demo's graph in the form that a server runs."""

# Of a sampler, where the nodes are named model, text and latent.
SAMPLER_LINKS = {
    "model": ["model", 0],
    "positive": ["text", 0],
    "negative": ["text", 1],
    "latent_image": ["latent", 0],
}
