"""Train a Flax model over all devices of this machine, with one line added: the decorator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import autopar

jax.config.update("jax_num_cpu_devices", 8)  # devices to emulate where there is no accelerator

model = nn.Sequential([nn.Dense(256), nn.gelu, nn.Dense(16)])
optimizer = optax.adamw(1e-3)


def init(key, batch):
    """The training state: parameters, and what the optimizer keeps."""
    params = model.init(key, batch["x"])
    return params, optimizer.init(params)


@autopar.parallelize
def train_step(state, batch):
    """One step, as it would be written for one device."""
    params, opt_state = state

    def loss_of(params):
        return jnp.mean((model.apply(params, batch["x"]) - batch["y"]) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


x = jax.random.normal(jax.random.key(1), (512, 64))
batch = {"x": x, "y": jnp.sin(x[:, :16])}

state = train_step.init(init, jax.random.key(0), batch, batch=batch)  # born in parts, never whole
print(train_step.plan(state, batch), end="\n\n")
for step in range(101):
    state, loss = train_step(state, batch)
    if step % 20 == 0:
        print(f"step {step:3}  loss {loss:.4f}")
