"""From weights to images: the process, the network and the sampler."""
