"""Words for the synthetic world: per topic adjectives and nouns, so that titles tell the topic."""

from __future__ import annotations

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey", "orange", "purple", "brown")

# topic: (adjectives, nouns)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "kitchen": (
        ("enamel", "cast iron", "ceramic", "copper", "non-stick"),
        ("saucepan", "teapot", "mixing bowl", "frying pan", "cake tin", "ladle", "colander"),
    ),
    "garden": (
        ("terracotta", "galvanised", "weatherproof", "hanging", "climbing"),
        ("flower pot", "watering can", "trowel", "bird feeder", "rose trellis", "plant label", "garden hose"),
    ),
    "sport": (
        ("training", "championship", "lightweight", "waterproof", "junior"),
        ("football", "running shoes", "yoga mat", "tennis racket", "dumbbell", "swimming goggles", "skipping rope"),
    ),
    "music": (
        ("acoustic", "electric", "vintage", "concert", "portable"),
        ("guitar", "keyboard", "violin strings", "drum sticks", "microphone", "amplifier", "record player"),
    ),
    "baby": (
        ("soft", "organic cotton", "newborn", "teething", "washable"),
        ("blanket", "rattle", "pacifier", "romper suit", "changing mat", "cot mobile", "feeding bottle"),
    ),
    "office": (
        ("recycled", "ruled", "adjustable", "desktop", "refillable"),
        ("notebook", "stapler", "fountain pen", "desk lamp", "paper tray", "monitor stand", "calendar"),
    ),
    "pets": (
        ("chewable", "reflective", "grain-free", "padded", "catnip"),
        ("dog lead", "cat basket", "squeaky bone", "aquarium filter", "hamster wheel", "scratching post", "puppy harness"),
    ),
    "camping": (
        ("ultralight", "folding", "insulated", "four-season", "inflatable"),
        ("tent", "sleeping bag", "camp stove", "lantern", "hiking backpack", "hammock", "water filter"),
    ),
    "christmas": (
        ("festive", "glittering", "snowy", "nordic", "advent"),
        ("tree bauble", "fairy lights", "stocking", "wreath", "nutcracker", "gift wrap", "reindeer figure"),
    ),
    "craft": (
        ("merino", "embroidery", "quilting", "watercolour", "crochet"),
        ("yarn", "needle set", "fabric bundle", "paint brush", "thread spool", "pattern book", "bead box"),
    ),
    "tools": (
        ("cordless", "hardened", "magnetic", "telescopic", "precision"),
        ("drill", "hammer", "screwdriver set", "spirit level", "hand saw", "wrench", "tape measure"),
    ),
    "beauty": (
        ("moisturising", "herbal", "matte", "perfumed", "hypoallergenic"),
        ("lipstick", "face cream", "nail lacquer", "shampoo", "bath salts", "mascara", "hand soap"),
    ),
}
