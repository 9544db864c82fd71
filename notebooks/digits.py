# %% [markdown]
# # Where does a network decide?
# Margins of a small network on the 8 x 8 digits of scikit-learn, along frequency windows of the DCT. In a notebook,
# install first: `%pip install '.[experiments]'` in a checkout.

# %%
import jax

import hmt_jax
from hmt_jax import data, models, plots, statistics, subspaces, training

# %% [markdown]
# Train a network; normalisation is part of the classifier.

# %%
digits = data.load("digits")
classifier = models.create("mlp", jax.random.key(0), image_shape=digits.image_shape, num_classes=10)
recipe = training.Recipe(num_epochs=60)
classifier = training.train(classifier, digits.train_images, digits.train_labels, recipe, jax.random.key(1))
print(training.evaluate(classifier, digits.test_images, digits.test_labels))

# %% [markdown]
# Measure the margins of the test images in six windows of 3 x 3 frequencies, from low to high.

# %%
diagonal = subspaces.dct_diagonal(digits.image_shape, size=3, step=1)
result = hmt_jax.measure_margins(classifier, digits.test_images, diagonal)
print(statistics.summarize(result).median)

# %%
figure = plots.margin_distribution(result, title="8 x 8 digits")
