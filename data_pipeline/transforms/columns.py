"""The columns of the parameters (N, P) of photometric augmentation, by name."""

PARAMETERS = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grey",
    "blur",
    "solarize",
    "turn",
    "gamma",
    "noise",
    "shot",
    "key",
    "drop",
    "shuffle",
)
"""Names of the columns: factors of brightness, contrast and saturation (1: no change), hue shift in
turns of the colour circle (0: none), 1 to convert to grey (else 0), sigma of the blur in pixels (0:
none), the threshold of solarization (2: none), the angle in radians by which the action "hue" turns the
chroma plane after all else (0: none), the power of the values (1: none), the standard deviation of Gaussian
noise and the scale of Poisson noise (0: none), the whole number below 2²⁴ that decides the noise, the
number of the channel that is dropped, counted from 1 (0: none), and the whole number below 2²⁴ that decides
the order of the channels (0: their own)."""
IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Parameters that change nothing."""

# The numbers of the columns: integers of a module, which numba and torch.compile treat as constants.
BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SOLARIZE, TURN = range(8)
GAMMA, NOISE, SHOT, KEY, DROP, SHUFFLE = range(8, len(PARAMETERS))
