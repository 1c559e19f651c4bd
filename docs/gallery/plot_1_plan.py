"""
A plan and its regularisation
=============================
"""

import matplotlib.pyplot as plt
import numpy as np

figure, axis = plt.subplots()
axis.plot(np.arange(3))
figure.set_label("A line from zero to two, drawn to see that the gallery works at all")
