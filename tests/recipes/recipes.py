"""Recipes of a few seconds, with all kinds of layers and rules in them."""

HEAD = """
dtype: float64
data: {name: digits, fraction: 0.15}
batch_size: 31
epochs: 2
"""

MLP = f"""{HEAD}
layers:
  - {{type: dense, units: 33, activation: relu, init: {{type: uniform, low: -0.2, high: 0.1}}}}
  - {{type: dense, units: 17, activation: tanh, bias_init: {{type: constant, value: 0.1}}}}
  - {{type: activation, function: softplus}}
  - {{type: dense, units: 10, init: {{type: gaussian, std: 0.1}}, bias: false}}
optimizer: {{type: momentum, learning_rate: 0.1}}
metrics: {{train: [accuracy, accuracy, misclassification], test: [accuracy, top_5, log_loss]}}
"""

RULES = f"""{HEAD}
layers:
  - {{type: dense, units: 21, bias: false, learning_rule: {{type: rmsprop, weight_decay: 0.01}}}}
  - {{type: batch_normalization, activation: elu, learning_rule: {{type: adagrad}}}}
  - {{type: dropout, ratio: 0.3}}
  - {{type: dense, units: 15, partition: input, learning_rule: {{type: adadelta}}}}
  - {{type: dense, units: 12, partition: whole, activation: leaky_relu}}
  - {{type: dense, units: 11, learning_rule: {{type: nesterov}}}}
  - {{type: dense, units: 10, learning_rule: {{type: sgd, learning_rate: 0.1}}}}
cost: binary_cross_entropy
optimizer: {{type: adam, weight_decay: 0.001}}
gradient_clipping: 0.5
schedule: {{type: polynomial, power: 2, warmup: 0.5}}
"""

CONVNET = f"""{HEAD}
layers:
  - {{type: convolution, channels: 5, kernel: [3, 2], stride: [1, 2], pad: 1, activation: relu}}
  - {{type: batch_normalization}}
  - {{type: pooling, kind: average, kernel: 3, stride: 2, pad: 1}}
  - {{type: dropout, ratio: 0.2}}
  - {{type: convolution, channels: 4, kernel: 2, bias: false}}
  - {{type: pooling, kernel: [2, 1]}}
  - {{type: dense, units: 10}}
cost: squared_error
optimizer: {{type: adam}}
schedule: {{type: exponential, factor: 0.5}}
"""

RECURRENT = f"""{HEAD.replace('fraction', 'shape: [1, 4, 16], fraction')}
layers:
  - {{type: recurrent, units: 7, cell: gru, output: all, init: {{type: glorot_uniform}}}}
  - {{type: batch_normalization}}
  - {{type: dropout, ratio: 0.2}}
  - {{type: recurrent, units: 6, cell: lstm, output: all, partition: input}}
  - {{type: recurrent, units: 9, cell: tanh}}
  - {{type: dense, units: 10}}
optimizer: {{type: momentum, learning_rate: 0.1}}
schedule: {{type: step, epochs: [1], factor: 0.5}}
"""

ALL = {'mlp': MLP, 'rules': RULES, 'convnet': CONVNET, 'recurrent': RECURRENT}
