# What a site sets before training, on every node: the only file here that a site edits, or replaces with cluster.env=FILE.
# It is read by bash before srun, and a copy of it goes into the run folder, so that a later edit does not change a queued run.

# modules that the interpreter or NCCL need
# module load cuda nccl

# caches on a disk that all nodes see and that is not the home directory
# export HF_HOME=/scratch/$USER/huggingface

# NCCL finds its network by itself on most clusters; these help where it does not
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=WARN

export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}  # a process that fails ends the others instead of leaving them waiting
