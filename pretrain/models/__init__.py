"""Networks: encoder, projector and target network, and what they are made of."""
