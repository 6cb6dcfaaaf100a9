// oneDNN's interface to a pool of threads, which is a class, over three functions of ours.

#include "oneapi/dnnl/dnnl_threadpool_iface.hpp"

extern "C" {

// As `Callbacks` in src/onednn/pool.rs.
struct easel_pool_callbacks {
    int (*threads)();
    int (*inside)();
    void (*share)(int count, void (*task)(const void *, int, int), const void *context);
};

}

namespace {

using Body = std::function<void(int, int)>;

struct Pool final : dnnl::threadpool_interop::threadpool_iface {
    explicit Pool(easel_pool_callbacks callbacks) : callbacks(callbacks) {}

    int get_num_threads() const override { return callbacks.threads(); }

    bool get_in_parallel() const override { return callbacks.inside() != 0; }

    void parallel_for(int count, const Body &body) override {
        auto task = [](const void *context, int index, int count) {
            (*static_cast<const Body *>(context))(index, count);
        };
        callbacks.share(count, task, &body);
    }

    // All tasks are done when parallel_for returns.
    uint64_t get_flags() const override { return 0; }
    void wait() override {}

    easel_pool_callbacks callbacks;
};

}

// Makes a pool, which lives as long as the program.
extern "C" void *easel_pool_new(easel_pool_callbacks callbacks) { return new Pool(callbacks); }
